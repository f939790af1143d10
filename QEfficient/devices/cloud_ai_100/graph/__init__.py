"""What becomes of an exported graph before the compiler reads it: a copy that float16 does less harm to.

prepared           all of it, in order
half_range         constants that float16 cannot hold; the copy itself, beside the same weights
small_constants    epsilons that float16 would make zero
steady_norms       norms whose squares stay in range
position_tables    what positions decide, as tables: float16 does not tell far positions apart
positional_part    the part of a graph that they are made by
table_lookups      the tables in the graph
key_biases         what is added to scores for a key's position, measured from the query's
key_differences    what measures it
layer_nodes        which nodes each of several groups of layers has
"""
