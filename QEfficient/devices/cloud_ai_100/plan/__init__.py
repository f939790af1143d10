"""What a program will need and how fast it will be, from sizes alone: `qefficient plan`.

records     what is known of a model, asked for, and found
memory      bytes on each device, and what the compiler would refuse
speed       time to first token and tokens per second, by a model of the card that was measured by others
estimate    all of it; the fewest devices that do; what would help
"""
