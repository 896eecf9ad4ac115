"""MaRCo: mask what two language models disagree on, fill it in with their product (Hallinan et al., 2023)."""
