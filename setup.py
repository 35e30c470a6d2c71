"Packaging; every value comes from settings.ini."
import shlex
from configparser import ConfigParser
from setuptools import find_packages, setup

parser = ConfigParser(delimiters=['='])
parser.read('settings.ini', encoding='utf-8')
c = parser['DEFAULT']
extras = 'look', 'dev', 'docs', 'gpu', 'heic', 'layers', 'encoders', 'hf'
packages = {name: shlex.split(c[f'{name}_requirements']) for name in extras}
packages['dev'] += packages['look'] + packages['docs'] + packages['encoders'] + packages['hf']

setup(
    name=c['lib_name'], version=c['version'], description=c['description'],
    long_description=open('README.md', encoding='utf-8').read(), long_description_content_type='text/markdown',
    author=c['author'], author_email=c['author_email'], license='MIT', keywords=c['keywords'],
    packages=find_packages(include=['nmc_workbench', 'nmc_workbench.*']), package_data={'nmc_workbench': ['**/*.js']},
    python_requires='>=' + c['min_python'],
    install_requires=shlex.split(c['requirements']), extras_require=packages,
    entry_points={'nbdev': [f"{c['lib_path']}={c['lib_path']}._modidx:d"]},
    zip_safe=False,
)
