"""Paper 1: how DPO lowers toxicity. Lee et al. (2024), Yang et al. (2024). The steps in order:

=================  =======  ==================================================================================
module             chapter  step
=================  =======  ==================================================================================
``probe``          2        a linear probe on the residual stream, the neurons that write along it (Lee, 3)
``pplm``           3        steer a model to toxic continuations, gradient step by gradient step (Lee, 4.1)
``pairs``          3        preference pairs: a civil and a toxic continuation of one prompt (Lee, 4.1)
``dpo``            3        direct preference optimisation on the pairs (Lee, 4.2)
``line``           3        between and beyond two models: base + λ · (tuned − base)
``exam``           3 to 8   toxicity, perplexity and F1 of a model under an intervention
``interventions``  4, 5, 8  ablate, patch, rescale, subtract, edit (Yang, 4 and 6)
``selection``      4, 5, 8  the neurons, directions and values that they act on
``stream``         4        mean residual streams, and how far DPO moves them
``trials``         4, 5, 8  the published interventions, and their controls, by name
``replay``         5        what parts of the DPO model write, put into the base model token by token
``neurons``        6        groups of neurons, and how far each projects on the toxic direction (Yang, 5)
``accounting``     6, 7     gross, net and shares, with intervals and nulls (Yang, 5)
``attribution``    6        what the probe reads, split over embedding, attention heads and MLPs
``study``          4 to 8   what these chapters share: two models, their texts, their activations
=================  =======  ==================================================================================
"""
