"""What a stranger may have written, checked before it is loaded: files, tokenizers, addresses.

Imports only `cluster`; whoever loads a bundle, a model or a data file asks here first.
"""
