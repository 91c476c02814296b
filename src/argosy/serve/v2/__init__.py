"""The Open Inference Protocol V2 without a transport: bodies to tensors, answers to bodies, models described."""
