"""The papers' metrics, each with an interval over the units that vary."""
