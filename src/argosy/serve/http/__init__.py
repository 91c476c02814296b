"""HTTP/1.1: connections, requests, replies, and what the URLs mean."""
