"""A step that is followed: what it allocates, and by whom, without computing it."""
