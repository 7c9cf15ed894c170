"""Who may do what: the authority, tokens, and the chain that every call passes."""
