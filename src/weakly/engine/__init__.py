"""Recipes, runs, training, prediction and evaluation; knows methods only through their six verbs."""
