"""Label as many images as there are: in parts, which a killed job goes on from.

sources.py     what was asked for becomes an order of images, whatever their number
labelling.py   what is shown of an image, and what a model says of it
manifest.py    what a folder of labels is of, and what must not change when it is gone on with
parts.py       a range of the source becomes a Parquet file
jobs.py        `vggkeras.label`: the parts that are not there yet, in this process
on_ray.py      the same parts in Ray's actors
"""
