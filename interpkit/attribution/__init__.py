"""Which pixels speak for a class: explanations by plugins' methods, class evidence, faithfulness, and export."""
