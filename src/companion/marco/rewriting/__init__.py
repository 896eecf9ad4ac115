"""Chapter 10: find the words that hurt, blank them, and fill the blanks with a product of experts."""
