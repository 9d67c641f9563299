"""One self-contained page of one report or several: no network, no server, opens from disk.

Python selects and formats data of records and `stats` here; the scripts under `assets` draw it. Names and messages of records
are untrusted text everywhere.
"""

from capsbench.page.build import page_html, write_page

__all__ = ["page_html", "write_page"]
