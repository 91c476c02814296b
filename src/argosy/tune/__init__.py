"""`argosy tune`: find the deployment settings that serve a model best on this machine, by measuring."""
