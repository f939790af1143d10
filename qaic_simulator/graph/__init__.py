"""The graph: symbols become numbers, what follows from them is folded, and each rule about it is checked."""
