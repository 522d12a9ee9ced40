"""The gRPC edge: the only place that knows of gRPC on the server's side."""
