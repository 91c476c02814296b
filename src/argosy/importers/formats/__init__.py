"""Files of models that were trained elsewhere: one module a framework, loaded in a confined process only."""
