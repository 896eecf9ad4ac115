"""Models that read a sentence with blanks and write it whole; three roles: base, expert, anti-expert.

In these rooms a *mask* is the paper's: the token that stands for a masked word (``mask_id``), and the choice
of words to mask. A *blank* is the gap that one mask, or several side by side, leave to be filled. Which
positions a model attends to is called ``attention``.
"""
