"""How good are the rewards, how sure can one be of it, and the page that says so."""
