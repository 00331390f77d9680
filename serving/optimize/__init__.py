"""`bertha build`: make engines of a bundle, measure each, and choose the fastest.

Also int8 quantization (SmoothQuant, GPTQ), graph export and embedding bundles. Imports no Ray and
no HTTP.
"""
