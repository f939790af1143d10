"""The Qualcomm Cloud AI 100: how it spells what it asks of the compiler of Qualcomm's SDK.

sdk                     where the SDK lies, which version it has
options                 what `compile` can be told, checked, and how the compiler spells it
command                 the command line
specializations_file    specializations.json: the shapes of one program
custom_io               custom_io.yaml: the precision of the state
partitions              mdp_*.json: several devices
qconfig                 qconfig.json: what a program was made from, for people
"""
