"""The attacked copy: the same function as the model, in the form in which its input gradient is cheapest."""
