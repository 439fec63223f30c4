"""The embedded server's own routes: their table, rights, checks and answers."""
