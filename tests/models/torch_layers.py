"""The layers of residual networks in torch's float64, on a Linen module's variables."""

import jax
import numpy as np
import torch
import torch.nn.functional as F


class Layers:
    """Layers by their path in `variables`, as "encoder/stem1"; maps are f64[B,C,h,w]."""

    def __init__(self, variables, train=False):
        self.tree = jax.tree.map(lambda x: torch.tensor(np.float64(x)), dict(variables))
        self.train = train

    def at(self, path, collection="params"):
        tree = self.tree[collection]
        for name in path.split("/"):
            tree = tree[name]
        return tree

    def conv(self, x, path):
        p = self.at(path)
        kernel = p["kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, p.get("bias"), padding=kernel.shape[-1] // 2)

    def dense(self, x, path):
        return x @ self.at(path)["kernel"] + self.at(path)["bias"]

    def norm(self, x, path):
        p, moments = (self.at(f"{path}/BatchNorm_0", c) for c in ("params", "batch_stats"))
        return F.batch_norm(x, moments["mean"], moments["var"], p["scale"], p["bias"], self.train, eps=1e-5)

    def unit(self, x, path):
        return self.norm(self.conv(x, f"{path}/conv"), f"{path}/norm")

    def basic(self, x, path):
        y = self.unit(F.relu(self.unit(x, f"{path}/conv1")), f"{path}/conv2")
        return F.relu(y + self._shortcut(x, path))

    def bottleneck(self, x, path):
        y = F.relu(self.unit(x, f"{path}/conv1"))
        y = F.relu(self.unit(y, f"{path}/conv2"))
        return F.relu(self.unit(y, f"{path}/conv3") + self._shortcut(x, path))

    def _shortcut(self, x, path):
        return self.unit(x, f"{path}/shortcut") if "shortcut" in self.at(path) else x

    def distill(self, features, path):
        """g_t = f_t + what it takes of every other task."""
        distilled = {}
        for t in features:
            others = [a for a in features if a != t]
            gates = [torch.sigmoid(self.conv(features[a], f"{path}/attention_{a}@{t}")) for a in others]
            taken = [self.conv(features[a], f"{path}/message_{a}@{t}") for a in others]
            terms = [gate * y for gate, y in zip(gates, taken, strict=True)]
            distilled[t] = features[t] + torch.stack(terms).sum(0)
        return distilled

    def fuse(self, maps, path):
        x = torch.cat([enlarge(x, maps[0].shape[2:]) for x in maps], 1)
        return F.relu(self.unit(x, path))


def enlarge(x, size):
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def to_torch(x):
    return torch.tensor(np.float64(x)).permute(0, 3, 1, 2)


def to_numpy(x):
    return x.permute(0, 2, 3, 1).numpy()
