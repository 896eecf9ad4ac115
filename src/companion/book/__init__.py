"""The book's machinery: run chapters, store results, check them, render pages. No chapter's method is in here."""
