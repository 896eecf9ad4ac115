"""What a run would take before it starts: downloads, disk, memory and hours, and what cannot end.

Nothing is loaded for it and nothing downloaded: the shape of a model says how many weights it has, the work of
a chapter is done once on models without bytes, and rates were measured.
"""
