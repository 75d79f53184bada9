"""Programs that show what jitslab is for: ``python -m jitslab.examples.NAME``."""
