"""Pure rules: values and `now` in, values out."""
