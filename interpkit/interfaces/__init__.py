"""What a plugin implements, one file per kind, and what passes between the parts. Start here."""
