"""Cards that processes share, and the modules `qaicrt` and `QAicApi_pb2` that run programs on them."""
