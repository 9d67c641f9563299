"""Following a step without computing it: the memory that it allocates, and the operators and modules that allocate it."""
