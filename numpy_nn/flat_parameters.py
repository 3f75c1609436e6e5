"""One contiguous vector for all parameters of a network, one for their gradients, one for running statistics."""

if __name__ == "__main__":
    raise SystemExit("numpy_nn/flat_parameters.py is a module, not a script: mlp_from_scratch.py uses it")

import math

import numpy as np


class FlatParameters:
    """Base class of a network with `layers`: their arrays are views into the vectors `params`, `grads` and `buffers`.

    So an optimizer sees two flat vectors, whatever the layers are. `views` is {"layer number.name": view} of
    parameters and buffers; `weights` is [(W, dW), ...] of the Linear layers.
    """

    def _allocate(self, dtype, expected=None):
        """expected: number of parameters and buffers in a file. Raises ValueError, before it allocates, for another one."""
        size = self._num_elements("shapes") + self._num_elements("buffer_shapes")
        if expected not in (None, size):
            raise ValueError(f"a network of its layer sizes has {size:,} values, and the file {expected:,}")
        self.params, self.grads = (np.zeros(self._num_elements("shapes"), dtype) for _ in range(2))
        self.buffers = np.zeros(self._num_elements("buffer_shapes"), dtype)
        self._bind_views()

    def _num_elements(self, shapes):
        """Number of elements of the layers' `shapes` or `buffer_shapes`."""
        return sum(math.prod(shape) for layer in self.layers for shape in getattr(layer, shapes).values())

    def _bind_views(self):
        """Make the layers' arrays views into the vectors."""
        self.views = self._carve_views("params", "shapes") | self._carve_views("buffers", "buffer_shapes")
        self._carve_views("grads", "shapes")
        self.weights = [(layer.params["W"], layer.grads["W"]) for layer in self.layers if "W" in layer.params]

    def _carve_views(self, attribute, shapes):
        """Give each layer its views into the vector `attribute`; return {"layer number.name": view}."""
        views, start, vector = {}, 0, getattr(self, attribute)
        with_params = (layer for layer in self.layers if layer.shapes)  # so the numbers do not depend on dropout
        for number, layer in enumerate(with_params):
            arrays = getattr(layer, attribute)
            for name, shape in getattr(layer, shapes).items():
                end = start + math.prod(shape)
                arrays[name] = views[f"{number}.{name}"] = vector[start:end].reshape(shape)
                start = end
        return views

    def __getstate__(self):  # a copy or pickle of a view is no longer a view: __setstate__ binds them again
        return {name: value for name, value in vars(self).items() if name not in ("views", "weights")}

    def __setstate__(self, attributes):
        vars(self).update(attributes)
        self._bind_views()
