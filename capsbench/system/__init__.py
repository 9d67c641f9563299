"""Services of the operating system: whole files, locks, paths, processes and their ends, cores, compilers."""
