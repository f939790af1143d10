"""Checks that a program gives the tokens that Hugging Face gives; tiny models of every type to check it with."""
