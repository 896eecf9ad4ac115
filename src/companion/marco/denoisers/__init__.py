"""Models that read a sentence with blanks and write it whole; three roles: base, expert, anti-expert."""
