"""minivllm: the system of the vLLM paper, small enough to read in an afternoon."""
