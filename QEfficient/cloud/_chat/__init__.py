"""What `qefficient chat` is made of: the conversation, the prompts made of it, settings, commands, the terminal.

`loop` joins them; none of the others needs a terminal or a model to be tried.
"""
