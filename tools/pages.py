"""Hook of mkdocs that gives the site its pages: documents where they lie in the repository, API and examples from the sources.

A page has its path in the repository, so that one link is right on the site and on a code host.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "*.md",
    "docs/*.md",
    "docs/*.css",
    "docs/images/*.png",
    "examples/*.yaml",
    "benchmarks/*.md",
    "reports/*/*.md",
    "reports/*/*.png",
    "LICENSE",
    "capsbench/data/sample/LICENSE",
)
"""Patterns of the pages, and of the files that they show or link to."""

API = {
    "measure": ("Measure and predict", "run", "predict", "estimate", "MemoryEstimate"),
    "reports": ("Reports", "Report", "load", "slopes"),
    "networks": ("Networks", "CapsNet", "ResCapsNet", "MoCapsNet", "CapsuleOutput", "CapsuleLoss", "classify", "models.Ensemble"),
    "routing": ("Routing", "routing.route", "routing.squash", "routing.length", "routing.kernels", "routing.algorithms"),
    "reversible": ("Reversible stacks", "reversible.MomentumStack", "reversible.DriftWarning", "stepping.step_in_backward"),
    "training": ("Training", "training.train", "training.TrainingSettings", "training.Result", "training.EpochFigures"),
    "testing": ("Tests of memory", "testing.memory_slope", "testing.MemorySlope", "testing.grown_memory"),
    "stats": (
        "Statistics",
        "fit_slope",
        "SlopeFit",
        "stats.slopes",
        "stats.line_fit",
        "stats.intervals",
        "stats.median",
        "stats.linearity",
    ),
    "allocator": ("CUDA's allocator", "tracing.cuda_allocator"),
    "errors": ("Errors", "errors"),
}
"""Pages of the API: a title, and names in `capsbench`."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give each page its path in the repository, and add those that are made from the sources."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name, (title, *members) in API.items():
        text = "\n\n".join([f"# {title}", *(f"::: capsbench.{member}" for member in members)])
        files.append(File.generated(config, f"api/{name}.md", content=text))
    files.append(File.generated(config, "examples.md", content=examples()))
    return files


def examples() -> str:
    """The page of examples: each script with its docstring as text."""
    parts = ["# Examples", "Each of these scripts is in `examples/`, and takes seconds on a CPU."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        _, docstring, code = path.read_text(encoding="utf-8").split('"""', 2)
        title, _, text = docstring.partition("\n")
        parts += [f"## {title.rstrip('.')}", text.strip(), f"```python\n{code.lstrip()}```"]
    return "\n\n".join(parts)
