"""The other way to a compiled program, by Qualcomm's QAIRT SDK (`enable_qnn`).

tools          where its two tools lie, and their command lines
files          the files that they read
compilation    all of it, one step after the other
"""
