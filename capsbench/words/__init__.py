"""Numbers and names as people read them: units, labels, printable text. No files, no colours."""
