"""What the card's number formats do to a program, on its own graph, before there is a card.

The graph runs on ONNX Runtime twice in one pass, as exported and as the card would compute it, so that every tensor
of the one can be held against its twin in the other:

    flat          functions inlined; which node of the program each node belongs to
    parts         which layer each node belongs to
    card_graph    the graph with the card's roundings written into it
    measures      a few numbers for every tensor, taken inside the graph: memory stays bounded
    session       runs it
    proposal      which nodes should stay in fp32
    precision_file    the file that tells the compiler

The card itself is not known down to the last bit (docs/cloud_ai_100.md): each result is rounded to float16 once.
"""
