"""The reference networks, under the names that the catalog gives them.

Each is wrapped so that the rest of the script sees one thing: parameters and buffers by the project's names, in PyTorch's
layout, a forward pass, and a switch for batch-norm's mode. Dropout and stochastic depth are off throughout.
"""

import torch
from torch import nn

CLASSES = 10


class Torch:
    """A network of torchvision or timm."""

    def __init__(self, module, dtype, channels_last):
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            if type(part).__name__ in ("StochasticDepth", "DropPath"):
                part.p = part.drop_prob = 0.0
        self.module = module.to(dtype)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.module = self.module.to(memory_format=torch.channels_last)

    def parameters(self):
        return {name: (p, lambda t: t) for name, p in self.module.named_parameters()}

    def buffers(self):
        named = self.module.named_buffers()
        return {n: (b, lambda t: t) for n, b in named if n.endswith(("running_mean", "running_var"))}

    def forward(self, x, train):
        self.module.train(train)
        return self.module(x.contiguous(memory_format=self.layout))


class Keras:
    """A network of keras.applications on PyTorch; kernels are turned into PyTorch's order and back."""

    ORDERS = {"kernel": (3, 2, 0, 1), "pointwise_kernel": (3, 2, 0, 1), "depthwise_kernel": (2, 3, 0, 1)}
    KINDS = {
        "kernel": "weight",
        "pointwise_kernel": "pointwise.weight",
        "depthwise_kernel": "depthwise.weight",
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }

    def __init__(self, model, rename=lambda layer: layer):
        self.model = model
        for layer in model.layers:
            if type(layer).__name__ == "Dropout":
                layer.rate = 0.0
        self.weights = {}
        for weight in model.weights:
            *_, layer, kind = weight.path.split("/")
            if kind in ("mean", "variance", "count", "seed_generator_state"):
                continue
            order = (1, 0) if len(weight.shape) == 2 else self.ORDERS.get(kind)
            # Alone in its layer, a depthwise kernel is called what any kernel is.
            separable = kind == "depthwise_kernel" and model.get_layer(layer).__class__.__name__ != "DepthwiseConv2D"
            if len(weight.shape) == 4 and "Depthwise" in model.get_layer(layer).__class__.__name__:
                order = self.ORDERS["depthwise_kernel"]
            name = self.KINDS.get(kind, kind) if separable or kind != "depthwise_kernel" else "weight"
            move = (lambda t, o=order: t.permute(o)) if order else (lambda t: t)
            self.weights[f"{rename(layer)}.{name}"] = (weight.value, move, weight.trainable)

    def parameters(self):
        return {n: (v, move) for n, (v, move, trained) in self.weights.items() if trained}

    def buffers(self):
        return {n: (v, move) for n, (v, move, trained) in self.weights.items() if not trained}

    def forward(self, x, train):
        return self.model(x.permute(0, 2, 3, 1), training=train)


def torchvision(name, **options):
    def build(dtype, channels_last):
        import torchvision.models as models

        return Torch(getattr(models, name)(num_classes=CLASSES, **options), dtype, channels_last)

    return build


def timm(name, **options):
    def build(dtype, channels_last):
        import timm as library

        return Torch(library.create_model(name, num_classes=CLASSES, **options), dtype, channels_last)

    return build


def widen():
    """On PyTorch, Keras takes float64 and float32 to be float32: batch-norms and means would not be a reference. A variance
    is to it what the mean of squares is more than the square of the mean: in float32 a gradient is up to 4e-3 away for it."""
    from keras.src import backend
    from keras.src.backend.common import dtypes

    if dtypes.result_type.__module__ == __name__:
        return
    narrow = dtypes.result_type

    def result_type(*types):
        return "float64" if any(str(t).endswith("float64") for t in types) else narrow(*types)

    def moments(x, axes, keepdims=False, synchronized=False):
        variance, mean = torch.var_mean(x, dim=axes, keepdim=keepdims, correction=0)
        return mean, variance

    dtypes.result_type = backend.result_type = result_type
    backend.nn.moments = moments


def keras(make, side, rename=lambda layer: layer):
    def build(dtype, _):
        import os

        os.environ["KERAS_BACKEND"] = "torch"
        import keras as library

        widen()
        library.backend.clear_session()
        library.config.set_floatx("float64" if dtype == torch.float64 else "float32")
        options = {"weights": None, "classes": CLASSES, "classifier_activation": None}
        return Keras(make(library, (side, side, 3), options), rename)

    return build


def keras_mobilenet(layer):
    """Keras' name of a layer of MobileNetV2 to torchvision's."""
    fixed = {"Conv1": "features.0.0", "bn_Conv1": "features.0.1", "Conv_1": "features.18.0"}
    fixed |= {"Conv_1_bn": "features.18.1", "predictions": "classifier.1"}
    if layer in fixed:
        return fixed[layer]
    prefix, part = ("0", layer.removeprefix("expanded_conv_")) if layer.startswith("expanded") else layer.split("_", 2)[1:]
    first = 0 if prefix == "0" else 1
    place = {"expand": "0.0", "expand_BN": "0.1", "depthwise": f"{first}.0", "depthwise_BN": f"{first}.1"}
    place |= {"project": f"{first + 1}", "project_BN": f"{first + 2}"}
    return f"features.{int(prefix) + 1}.conv.{place[part]}"


def keras_efficientnet(library, shape, options):
    model = library.applications.EfficientNetB0(input_shape=shape, **options)
    # The input is in [0, 1] already; with published weights a second division by the root follows, which a network
    # without weights lacks.
    model.get_layer("rescaling").scale = 1.0
    normalization = model.get_layer("normalization")
    normalization.adapt_mean.assign([0.485, 0.456, 0.406])
    normalization.adapt_variance.assign([d * d for d in (0.229, 0.224, 0.225)])
    normalization.finalize_state()
    return model


def keras_nasnet(library, shape, options):
    from keras.src.applications import nasnet

    # NASNetMobile refuses other sizes than 224 only where weights are published; this is what it builds.
    return nasnet.NASNet(shape, 1056, 4, 32, False, 2, True, default_size=224, **options)


def keras_resnet(library, shape, options):
    return library.applications.ResNet50(input_shape=shape, **options)


def keras_mobilenet_v2(library, shape, options):
    return library.applications.MobileNetV2(input_shape=shape, **options)


class ResNet20(nn.Module):
    """ResNet-20 of section 4.2 of He et al., 2015, with option-A shortcuts."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        width = 16
        for index, out in enumerate([16, 32, 64]):
            blocks = []
            for _ in range(3):
                block = nn.Module()
                block.conv1 = nn.Conv2d(width, out, 3, 1 if width == out else 2, 1, bias=False)
                block.bn1, block.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
                block.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
                blocks.append(block)
                width = out
            setattr(self, f"layer{index + 1}", nn.ModuleList(blocks))
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for layer in (self.layer1, self.layer2, self.layer3):
            for block in layer:
                y = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
                if y.shape != x.shape:
                    more = (y.shape[1] - x.shape[1]) // 2
                    x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
                x = (x + y).relu()
        return self.linear(x.mean((2, 3)))


def resnet20(dtype, channels_last):
    return Torch(ResNet20(), dtype, channels_last)


def net(
    build, side, backbone=None, padding="symmetric", eps=1e-5, trajectory=0, gain=2.0, shifts=(), channels_first=False
):
    """`gain` is that of kernels in a network of rectifiers, such that what differs between samples survives all layers;
    zero where everything is smooth. `shifts` are parts of names of layers that a rectifier follows, besides batch-norms.
    `channels_first` leaves out PyTorch's other order, in which its batch-norms sum the batch in float32 with so little care
    that a gradient of MobileNetV2 is a percent away, and one of DenseNet-121 a thousandth in the step."""
    spec = {"build": build, "side": side, "backbone": backbone, "padding": padding, "eps": eps}
    return spec | {"trajectory": trajectory, "gain": gain, "shifts": list(shifts), "channels_first": channels_first}


# All but the last layer.
VGG = [".features.", ".classifier.0.", ".classifier.3."]

# File name to network. An odd side tells the paddings apart that an even one hides.
ALL = {
    "resnet20": net(resnet20, 32, trajectory=16),
    "resnet18": net(torchvision("resnet18"), 97),
    "resnet34": net(torchvision("resnet34"), 64),
    "resnet50": net(torchvision("resnet50"), 96),
    "resnet101": net(torchvision("resnet101"), 64),
    "resnet152": net(torchvision("resnet152"), 64),
    "mobilenet_v2": net(torchvision("mobilenet_v2"), 97, channels_first=True),
    "mobilenet_v2_same": net(keras(keras_mobilenet_v2, 96, keras_mobilenet), 96, "mobilenet_v2", "same", 1e-3),
    "mobilenet_v2_same_odd": net(keras(keras_mobilenet_v2, 97, keras_mobilenet), 97, "mobilenet_v2", "same", 1e-3),
    "vgg16": net(torchvision("vgg16"), 32, gain=1.5, shifts=VGG),
    "vgg19": net(torchvision("vgg19"), 32, gain=1.5, shifts=VGG),
    "densenet121": net(torchvision("densenet121"), 96, channels_first=True),
    "efficientnet_b0": net(torchvision("efficientnet_b0"), 97, gain=0.0),
    "efficientnet_b0_keras": net(keras(keras_efficientnet, 96), 96, gain=0.0),
    "inception_v3": net(
        torchvision("inception_v3", aux_logits=False, init_weights=False, transform_input=False), 107, eps=1e-3, gain=3.0
    ),
    "inception_resnet_v2": net(
        timm("inception_resnet_v2"), 107, eps=1e-3, gain=3.0, shifts=[".conv2d."]
    ),
    "resnet50_keras": net(keras(keras_resnet, 96), 96),
    "nasnet_mobile": net(keras(keras_nasnet, 96), 96, eps=1e-3),
    "vit_s16": net(timm("vit_small_patch16_224", img_size=96), 96, gain=0.0),
}
