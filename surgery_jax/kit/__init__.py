"""How operations and assertions are declared."""
