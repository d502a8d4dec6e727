"""The report of a job: its receipt as a page for people who read no JSON, in one HTML file that loads nothing.

`view` says in words what a receipt states, `intervals` how far a figure can be trusted, `around_swap` what the server
measured beside it, `figure` and `calls_figure` draw, and `page` puts all of it into the template. It needs the base
install alone, and never sees a document.
"""
