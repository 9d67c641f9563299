"""Everything that needs a GPU, in one command that ends within a budget of seconds.

    python -m benchmarks.gpu [--budget 520] [--only PART,PART] [--device cuda|cpu] [--out FOLDER] [--wheels FOLDER]
    python -m benchmarks.gpu --write [--out FOLDER]

The first form runs the parts of `parts.py` in their order of worth, each in a process of its own with a limit, and keeps every
result in the folder as soon as there is one. Whatever fails, the next part begins. The same command resumes: it takes the parts
that are missing, failed or were cut off, and of these the items that are not there yet. A part that `--only` names is looked at
even if it was done. The second form needs no GPU: it puts the results into `benchmarks/gpu/results`, one file a card, the reports
into `reports/`, and writes `benchmarks/gpu.md`.

`--device cpu` tries everything at tiny sizes on a machine without a GPU; nothing of it is written to the page.
"""
