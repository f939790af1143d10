"""Stand-ins for the tools of the Cloud AI SDK, for machines without it: strict, and never mistaken for the real ones.

A stand-in may refuse what the real tool accepts; it never accepts what the real tool is known or likely to refuse.
Nothing here imports QEfficient: what passes was written for the SDK, not for its stand-in.

rules, profiles      reasons to refuse, and what differs between releases and cards
command_line/        the compiler's arguments
side_files/          the files beside them
graph/               the graph, for each specialization
compiler             the tool that puts these together; program_file writes what it makes
container, network_descriptor, microscaling     forms that compiler and runtime share
runtime/             cards, `qaicrt`, `QAicApi_pb2`, `qaic-util`
qnn/                 the tools of the QNN route
root                 all of it as a folder like an installed SDK
"""
