"""What a reply has to follow: grammars asked for, written, tried and compiled."""
