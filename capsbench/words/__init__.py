"""Numbers and names for people: units, labels, printable text. No files, no colours."""
