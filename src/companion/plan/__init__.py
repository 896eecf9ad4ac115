"""What a run would take before it starts: downloads, disk, memory and hours, and what cannot end.

Nothing is loaded for it and nothing downloaded: the shape of a model says how many weights it has, each kind
of work is done once on a model without bytes, and rates were measured.
"""
