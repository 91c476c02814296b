"""HTTP/2 as RFC 9113 has it, server side, and no more of it than gRPC needs."""
