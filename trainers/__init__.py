"""Turn a recipe into a bundle: data, model, layout, training. Imports only `cluster`."""
