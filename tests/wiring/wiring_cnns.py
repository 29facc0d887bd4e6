"""Small convolutional networks, one for each way of wiring channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedBlock(nn.Module):
    """A residual block whose shortcut subsamples and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(x + y)


class PaddedResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(*(PaddedBlock(i, o, o // i) for i, o in ((8, 8), (8, 16), (16, 16), (16, 32))))
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(F.avg_pool2d(x, x.size(3)).view(x.size(0), -1))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class BottleneckResNet(nn.Module):
    """As torchvision writes it; (4 blocks, widths times `width`) by default."""

    def __init__(self, width: int = 4, depths: tuple[int, ...] = (2, 2), groups: int = 1, classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 2 * width, 7, 2, 3, bias=False), nn.BatchNorm2d(2 * width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers, inputs = [], 2 * width
        for stage, depth in enumerate(depths):
            for block in range(depth):
                inner = width * 2**stage
                layers.append(Bottleneck(inputs, inner, 4 * inner, 2 if stage and not block else 1, groups))
                inputs = 4 * inner
        self.layers = nn.Sequential(*layers)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Squeeze(nn.Module):
    """Channel attention, as in MobileNetV3 and EfficientNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        inner = inputs * 3
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.Hardswish(),
            Squeeze(inner) if squeeze else nn.Identity(),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.blocks = nn.Sequential(Inverted(8, 8, 1, False), Inverted(8, 12, 2, True))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 1, 1)
        self.dense = nn.Sequential(*(DenseLayer(6 + 4 * i, 4) for i in range(3)))
        self.transition = nn.Conv2d(18, 9, 1)
        self.fc = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(self.transition(self.dense(self.conv(x))), 2).amax((2, 3)))


class UNet(nn.Module):
    """Skips are concatenated; one way up is a transposed convolution, the other interpolates."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = (
            nn.Conv2d(1, 4, 3, 1, 1),
            nn.Conv2d(4, 6, 3, 1, 1),
            nn.Conv2d(6, 8, 3, 1, 1),
        )
        self.norm = nn.InstanceNorm2d(6, affine=True)
        self.up = nn.ConvTranspose2d(8, 5, 2, 2)
        self.mid, self.last = nn.Conv2d(11, 7, 3, 1, 1), nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.leaky_relu(self.norm(self.down2(F.max_pool2d(a, 2))))
        c = F.relu(self.down3(F.max_pool2d(b, 2)))
        b = F.elu(self.mid(torch.cat([b, self.up(c)], dim=1)))
        return self.last(torch.cat([F.interpolate(b, scale_factor=2, mode="nearest"), a], dim=1))


class Shuffled(nn.Module):
    """Grouped convolutions around a channel shuffle, then a pixel shuffle."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, 16, 1)
        self.first = nn.Conv2d(16, 32, 3, 1, 1, groups=groups)
        self.second = nn.Conv2d(32, 16, 3, 1, 1, groups=groups)
        self.expand = nn.Conv2d(16, 12, 1)
        self.shuffle = nn.PixelShuffle(2)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.relu(self.stem(x))))
        b, c, h, w = x.size()
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        return self.last(self.shuffle(self.expand(F.relu(self.second(x)))))


class GroupNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, 1, 1), nn.GroupNorm(4, 12)
        self.conv2, self.norm2 = nn.Conv2d(12, 6, 3, 1, 1), nn.GroupNorm(1, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))).mean((-2, -1)))


class Mixed1d3d(nn.Module):
    """One- and three-dimensional convolutions, grouped and depthwise transposed ones, and a flattened classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3, self.norm3 = nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.up = nn.ConvTranspose1d(6, 8, 2, 2, groups=2)
        self.depthwise = nn.ConvTranspose1d(8, 8, 2, 2, groups=8)
        self.prelu = nn.PReLU(8)
        self.conv1 = nn.Conv1d(8, 5, 3, padding="same")
        self.fc = nn.Linear(5 * 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm3(self.conv3(x))).flatten(2)
        x = self.prelu(self.depthwise(self.up(x)))
        return self.fc(self.conv1(x).reshape(x.shape[0], -1))
